"""SuperPoint + LightGlue for matchrt."""
