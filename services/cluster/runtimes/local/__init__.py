"""This machine as a cluster. Kept empty: the supervisor of each worker imports through here and must stay small."""
