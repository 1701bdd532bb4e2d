"""Maps from the codes of an SAE on the source model to states of the target model."""
