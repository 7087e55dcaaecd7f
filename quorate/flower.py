"""Apps of Flower in a job, unmodified: the face of `fl.client.adapters.flower`. Whoever creates the job:

    arrays, roles, config, rounds = quorate.flower.draft("package.client_app:app")
    network.create_job("digits", arrays, rounds=rounds, config=config, **roles, target=3, privacy="…")

Whoever trains in it:

    job.join()
    quorate.flower.train(job, "package.client_app:app", node_config="partition-id=0 num-partitions=4")
"""

from fl.client.adapters.flower import draft, evaluate, load, train

__all__ = ["draft", "evaluate", "load", "train"]
