"""Reads pickles without loading them: `machine` runs the opcodes symbolically, `names` judges what they import."""
