"""EfficientLoFTR and MatchAnything-ELoFTR for matchrt."""
