"""Frames, the partial results of a computation, and Runs, which compute them."""
