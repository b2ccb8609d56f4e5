"""From traces to rows: tokenizer, prompt layouts, token store, packing plan, loader."""
