"""A page as a browser would take it, without one."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would see: tags, text, whatever it would load, and name -> what it saves."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.loads, self.text, self.saves = [], [], "", {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "a" and (known := dict(attrs)).get("href", "").startswith("data:"):
            self.saves[known["download"]] = known["href"]
            return
        loading = ("src", "href", "xlink:href", "data", "srcset", "action", "poster")
        self.loads += [v for k, v in attrs if k in loading and not (v or "").startswith("#")]

    def handle_data(self, data):
        self.text += data
