"""How frameworks' models become arrays of a job, and back: a file for each framework, imported when it is asked for.

Enters: a module, an estimator or an app of a framework. Leaves: what `create_job` and `submit` take, and what a task's
arrays do to the framework's own object. The verbs are the same in all: `arrays`, `roles`, `load`, `weights`.
"""
