"""The only code that knows Hugging Face module names and fused layouts."""
