"""Occlusion without repeating what a patch cannot change: see `incremental_forward`."""
