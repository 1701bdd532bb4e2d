"""Whether a transferred artefact still works: effects, controls, intervals."""
