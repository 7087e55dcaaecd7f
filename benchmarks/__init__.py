"""The benchmark suite: what the product does on this machine, measured by anyone, with `quorate bench`.

A scenario goes in by its name and its settings; a report comes out, as JSON of a fixed form, as one table, as pictures.
Validators are real processes that write to a real disk, loads come from processes of their own over the same doors that
every client uses, and what each process used is in the report by its role. Figures have one value a repetition, after a
warm-up that is left out; with them stand the machine, the versions, and the floor: what the same bytes would cost with
no chain around them, measured in the same run.

    scenarios/          one file each: what is set up, what is measured
    scenario, suite     what a scenario is; one performed from its name to its report
    network, machine, processes, links, profiling
                        validators while something is measured; where that was, and what processes used
    accounts, submitting, child
                        who sends, how, and from a process of its own
    campaign, probes, trainers, crowd
                        small updates without end, small ones one at a time, large ones by the SDK, one round of many
    windows, rounds, checks
                        what was executed in a time; rounds as they go by; that nothing acknowledged is lost, by proofs
    floor/, floors      the bare pipeline, and its share beside a case
    figures, report, schema, compare, plots
                        what was found, written down, checked, held beside something else, drawn

Beside them stand measurements of single parts, which are run as modules and say how in their first lines: `reading`,
`execution`, `ingest`, `blob_door`, `bulk_links`, `sums_memory`, `comparing` and others.
"""
