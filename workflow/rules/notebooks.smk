"""The notebooks, executed on the study's results so that they cannot rot.

notebooks/*.ipynb, results/<study> -> results/<study>/notebooks/*.html
"""

NOTEBOOKS = [path.stem for path in sorted(Path("notebooks").glob("*.ipynb"))]


rule notebook:
    input:
        notebook="notebooks/{notebook}.ipynb",
        results=rules.analysis.input,
    output:
        page=f"{RESULTS}/notebooks/{{notebook}}.html",
    log:
        f"{LOGS}/notebooks/{{notebook}}.log",
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
