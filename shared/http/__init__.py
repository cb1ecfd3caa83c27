"""The ground that every HTTP route stands on: bodies, problems, pages, event streams, guards, rate limits."""
