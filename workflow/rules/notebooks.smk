"""The notebooks, executed on the study's results so that they cannot rot.

notebooks/*.ipynb, results/<study> -> results/<study>/notebooks/*.html

One of your own in that folder is run as well, unless its name marks it as a copy or a draft: by
anything but letters, digits, underscores and hyphens.
"""

NOTEBOOK_NAME = r"[A-Za-z0-9_-]+"
NOTEBOOKS = []
for path in sorted(Path("notebooks").glob("*.ipynb")):
    if re.fullmatch(NOTEBOOK_NAME, path.stem):
        NOTEBOOKS.append(path.stem)
    else:
        logger.warning(f"left out, its name is not of letters, digits, _ and - alone: {path}")


rule notebook:
    input:
        notebook="notebooks/{notebook}.ipynb",
        results=rules.analysis.input,
    output:
        page=f"{RESULTS}/notebooks/{{notebook}}.html",
    log:
        f"{LOGS}/notebooks/{{notebook}}.log",
    wildcard_constraints:
        notebook=NOTEBOOK_NAME,
    conda:
        ENVIRONMENT
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        code=code_id("eqadapt.adaptation"),
    message:
        "run notebook {wildcards.notebook}"
    shell:
        'EQADAPT_RESULTS="$PWD/$RESULTS" jupyter nbconvert --execute --to html'
        ' --output-dir "$RESULTS/notebooks" {input.notebook} > {log} 2>&1'


rule notebooks:
    input:
        expand(rules.notebook.output.page, notebook=NOTEBOOKS),


localrules:
    notebooks,
