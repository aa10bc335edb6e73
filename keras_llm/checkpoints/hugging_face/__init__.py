"""Read and write Hugging Face model folders."""
