"""What is particular to a Hugging Face hub: asking it (`api`) and choosing files of a repository (`choice`)."""
