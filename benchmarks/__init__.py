"""The benchmark suite: what the product does on this machine, measured by anyone, with `quorate bench`.

A scenario goes in by its name and its settings; a report comes out, as JSON of a fixed form, as one table, as pictures.
Validators are real processes that write to a real disk, loads come from processes of their own over the same doors that
every client uses, and what each process used is in the report by its role. Figures have one value a repetition, after a
warm-up that is left out; with them stand the machine, the versions, and the floor: what the same bytes would cost with
no chain around them, measured in the same run.

    scenarios/     one file each: what is set up, what is measured
    scenario, suite    what a scenario is; one performed from its name to its report
    network, processes, machine    validators for as long as something is measured; what processes use; where that was
    accounts, campaign, probes, crowd    who sends: small updates without end, one at a time, one large round
    checks         that nothing acknowledged is lost, by proofs
    floor/         the bare pipeline
    figures, report, schema, compare, plots    what was found, written down and held beside something else
"""
