"""`matchrt demo`: the whole way, from a shipped checkpoint to pictures and a report."""
