"""One benchmark a file: its reader, its prompts and its known faults; each makes `Question`s."""
