import re
from pathlib import Path

from attnctl.batch import read_jobs

PAGE = Path(__file__).parents[2] / "docs" / "batch.md"


def test_the_worked_example_asks_for_what_the_page_says(tmp_path):
    (text,) = re.findall(r"^```yaml batch\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    jobs = read_jobs(path)
    assert len(jobs.jobs) == 18
    assert "18 pictures" in PAGE.read_text()
    scales = {jobs.recipe(job).build_techniques()[0].scale for job in jobs.jobs}
    assert scales == {0.0, 1.0, 2.0}
