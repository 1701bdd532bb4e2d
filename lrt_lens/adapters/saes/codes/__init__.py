"""Maps straight from the codes of an SAE to the target model."""
