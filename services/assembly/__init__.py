"""What the ways to run Stepway have in common: parts that join one service's code to another's."""
