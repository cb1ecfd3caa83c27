"""The types of tasks, one file each: its specification and what it does. `registry` lists them."""
