"""Those who are told of a job as it goes on: the face of `fl.client.trackers`.

job.follow(quorate.trackers.TensorBoard("runs/digits"))
job.follow(quorate.trackers.Calls(on_round=lambda report: print(report.round, report.metrics)))
"""

from fl.client.trackers import Calls, TensorBoard, Tracker

__all__ = ["Calls", "TensorBoard", "Tracker"]
