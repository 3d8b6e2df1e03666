"""The support desk, tuned by lg_textgrad and by the peers."""
