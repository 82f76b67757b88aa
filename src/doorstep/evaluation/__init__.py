"""Roll-outs of a workflow over data: graded, resumable, with intervals."""
