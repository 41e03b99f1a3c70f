import torch
from batchyard import InvalidInput, Model


class Lengths(Model):
    input_schema = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
    cost_unit = "characters"

    def load(self, device):
        self.device = device
        self.scale = torch.tensor(self.options.get("scale", 1.0), device=device)

    def preprocess(self, inputs, params):
        return [item["text"] or InvalidInput("text is empty") for item in inputs]

    def cost(self, item):
        return len(item)

    def forward(self, items):
        return torch.tensor([len(item) for item in items], device=self.device) * self.scale

    def postprocess(self, outputs):
        return [{"length": value} for value in outputs.tolist()]
