"""The moves of a task between SQLite's tables: functions over a connection inside an open transaction.

    place, limit ◄ end ◄ submit ◄ finish ◄ time      claim      outside (cancel, resume, revive)      look (reads)
           over ◄──┘  calls end with attempts        lane ◄─┘   permit ► provider (governor), budget      wait

Each takes `(connection, effects, …)`. They neither begin nor commit, so the writer can group them and `submit_in`
can run them in the caller's own transaction.
"""
