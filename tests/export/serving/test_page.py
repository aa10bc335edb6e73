"""Test the web page at `/` in headless Chromium."""

import pathlib
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def pictures(request, tmp_path):
    """Folder for screenshots of the page."""
    return pathlib.Path(request.config.getoption("--screenshots") or tmp_path)


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.problems, page.asked = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def test_run_a_model_on_the_page(page, text_server, task, pictures):
    root = f"http://127.0.0.1:{text_server.rest_api_port}"
    page.goto(root + "/")
    page.wait_for_selector("textarea[name=prompt]")
    assert page.locator("#models tbody tr").all_inner_texts() == ["stories\t1\t"]
    page.fill("textarea[name=prompt]", "The import statement")
    page.fill("input[name=max_new_tokens]", "12")
    page.fill("input[name=temperature]", "0")
    page.click("#send")
    page.wait_for_selector("#answer:not([hidden])")
    shown = dict(
        zip(
            page.locator("dt").all_inner_texts(),
            page.locator("dd").all_text_contents(),
            strict=True,
        )
    )
    assert shown["text"] == task("The import statement", 12, temperature=0.0)
    page.screenshot(path=pictures / "page_answer.png")

    page.fill("input[name=temperature]", "-1")
    page.click("#send")
    page.wait_for_selector("#state.error")
    assert "temperature must be a number >= 0" in page.inner_text("#state")
    page.screenshot(path=pictures / "page_error.png")
    page.problems.clear()  # the browser logs the status 400

    page.select_option("#signature", "score")
    page.fill("textarea[name=text]", "<b>The</b> import")
    page.click("#send")
    page.wait_for_selector("#answer:not([hidden])")
    figures = dict(
        zip(
            page.locator("dt").all_inner_texts(),
            page.locator("dd").all_text_contents(),
            strict=True,
        )
    )
    assert float(figures["log_probability"]) == pytest.approx(
        task.score("<b>The</b> import"), abs=1e-3
    )
    assert not page.problems
    assert all(url.startswith(root) for url in page.asked)  # no requests to other hosts


def test_several_models_and_one_without_text_input(
    page, serve, tiny_base, tmp_path, save_tiny, pictures
):
    import tensorflow as tf

    class Scalar(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.int32, name="n")])
        def once(self, n):
            return {"n": n}

    scalar = Scalar()
    tf.saved_model.save(scalar, str(tmp_path / "b/1"), signatures={"once": scalar.once})
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "a" base_path: "{tiny_base}" '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 1 } } '
        f'config {{ name: "b" base_path: "{tmp_path / "b"}" model_platform: "tensorflow" }} }}'
    )
    server = serve(model_config_file=str(config))
    page.goto(f"http://127.0.0.1:{server.rest_api_port}/")
    page.wait_for_selector("textarea[name=text]")
    assert page.locator("#models tbody tr").all_inner_texts() == ["a\t1\tstable = 1", "b\t1\t"]
    page.fill("textarea[name=text]", "small")
    page.click("#send")
    page.wait_for_selector("#answer:not([hidden])")
    assert page.locator("dd").all_text_contents() == ["SMALL"]
    page.screenshot(path=pictures / "page_two.png")
    page.select_option("#model", "b")
    page.wait_for_selector("#state.error")
    assert "no signature that takes text" in page.inner_text("#state")
    assert page.is_disabled("#send") and not page.problems
