"""From predictions to tables, figures, claims and a report: reads only files in ``results/``.

    predictions -> evaluations (one run at one group) -> metrics.csv
                                                     -> tables, figures, claims.json -> report.html

Every number shown anywhere is computed here from the prediction files of a study; published figures
come from ``config/published.yaml`` and are shown beside ours, never mixed with them.
"""
