"""The broad runtime: any language or vision-language model that `transformers` has, through its own modules."""
