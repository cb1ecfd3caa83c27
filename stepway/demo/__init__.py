"""The demo: starts Stepway, and takes a small model through the wizards as an ordinary HTTP client."""
