"""What a run would take on a machine that is not at hand: compiled for it where that is possible, counted otherwise."""
