"""Compare the greedy texts of a task and of its exported files."""

NEW_TOKENS = 24


def of(task, paths, prompts):
    """Return the greedy continuation of each prompt by Keras and each exported file.

    Args:
        task: the task.
        paths: dict from saved_model, litert and, if there is one, litert_lm to the files.
        prompts: list of str.
    """
    import tensorflow as tf

    from keras_llm import export

    task(prompts, NEW_TOKENS, temperature=0.0)  # compile before timing
    serve = tf.saved_model.load(str(paths["saved_model"] / "1")).signatures["serving_default"]
    files = [name for name in ("litert", "litert_lm") if name in paths]
    devices = {name: export.LiteRTModel(paths[name]) for name in files}
    settings = {"max_new_tokens": [NEW_TOKENS], "temperature": [0.0], "top_k": [0]}
    settings |= {"top_p": [1.0], "seed": [0]}
    served = serve(prompt=tf.constant(prompts), **{k: tf.constant(v) for k, v in settings.items()})
    return [
        {
            "prompt": prompt,
            "keras": task(prompt, NEW_TOKENS, temperature=0.0),
            "saved_model": text.decode(),
            **{
                name: device.generate(prompt, NEW_TOKENS, temperature=0.0)
                for name, device in devices.items()
            },
        }
        for prompt, text in zip(prompts, served["text"].numpy(), strict=True)
    ]


def show(rows):
    """Print the texts of each prompt, and whether they are the same."""
    for row in rows:
        prompt, *texts = row.values()
        print(f"prompt       {prompt!r}")
        for name, text in list(row.items())[1:]:
            print(f"{name:12} {text!r}")
        print("the same" if len(set(texts)) == 1 else "NOT the same")
