"""One short script for each task, from raw text to a shipped artefact."""

RECIPES = {
    "text_generation": "train a causal language model that continues text",
}
