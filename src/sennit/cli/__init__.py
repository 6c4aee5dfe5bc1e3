"""The command line: one file per noun, each imported only when its command runs.

    main ─► shared options ─► command ─► store or App        stdout: data        stderr: progress, logs, errors

Commands raise the errors of `sennit.errors` and return an exit code; only `main` prints an error or ends the process.
"""
