"""RoMa and MatchAnything-RoMa for matchrt."""
