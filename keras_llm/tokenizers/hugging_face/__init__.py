"""Read and write the tokenizer files of Hugging Face libraries."""
