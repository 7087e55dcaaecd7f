"""PyTorch modules in a job: the face of `fl.client.adapters.torch`, which says what becomes of a module's tensors.

for task in job.tasks():
    quorate.torch.load(net, task.model)
    examples = train(net, **task.config)
    task.submit(weights=quorate.torch.weights(net), examples=examples)
"""

from fl.client.adapters.torch import Proximal, TorchApp, arrays, draft, load, roles, weights

__all__ = ["Proximal", "TorchApp", "arrays", "draft", "load", "roles", "weights"]
