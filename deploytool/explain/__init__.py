"""What an answer rests on: attribution maps, and how stable they are."""
