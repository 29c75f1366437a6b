"""How long the library's own work takes, as ratios to what a run does anyway."""
