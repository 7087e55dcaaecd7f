"""scikit-learn estimators in a job: the face of `fl.client.adapters.sklearn`.

model = quorate.sklearn.prepare(SGDClassifier(), features=64, classes=range(10))
for task in job.tasks():
    quorate.sklearn.load(model, task.model)
    model.partial_fit(x, y)
    task.submit(weights=quorate.sklearn.weights(model), examples=len(y))
"""

from fl.client.adapters.sklearn import SklearnApp, arrays, draft, load, prepare, roles, weights

__all__ = ["SklearnApp", "arrays", "draft", "load", "prepare", "roles", "weights"]
