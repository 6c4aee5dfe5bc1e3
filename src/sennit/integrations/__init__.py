"""The road into other people's code: the limits of the fleet, put in front of calls that somebody else makes.

http.py       a transport for httpx2 clients: the openai and anthropic packages, and everything else that takes one
litellm.py    a callback for litellm
proxy.py      an HTTP proxy on loopback: any framework, any language, by changing one base URL
"""
