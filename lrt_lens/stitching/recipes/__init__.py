"""Maps trained by steps over rows, as papers train them, for comparison with closed forms."""
