"""Worlds small enough to list, and networks small enough to train side by side: what the laboratories measure."""
