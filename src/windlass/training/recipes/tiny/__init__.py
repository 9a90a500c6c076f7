"""The embedded model's recipe: phrases, rows, tokenizer, training plan, evaluation, card."""
