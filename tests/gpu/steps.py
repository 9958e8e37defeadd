"""One training step in several forms: the same loss and optimiser, other ways through the encoder.

`padded` is what the trainer does today on a GPU. The others are candidates for it:

| form | what differs |
|---|---|
| masked | the mask is made once, and nothing waits for the GPU |
| buckets | the same, in two halves by length, each padded to its own longest |
| unpadded | real tokens only, attention by cumulative lengths |
| lean | the same without autocast: one product for query, key and value, bfloat16 between layers |

`graph=True` replays a whole step as one CUDA graph, one for each number of tokens.
`compiled=True` (lean) fuses what lies between the products with torch.compile.
`efficient=True` (lean) takes the memory-efficient kernel in place of the flash kernel.
"""
import copy
import tempfile
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from report import import_trainer
from torch import nn
from transformers import AttentionInterface, BertConfig, BertModel
from sfr_repro.core.notation import unit_rows
from sfr_repro.encode.encoder import SentenceEncoder, pad_ids
from sfr_repro.losses.registry import make_loss

# Tokens of wiki sentences cut at 32, as forty quantiles
LENGTHS = (11, 13, 14, 15, 17, 18, 19, 19, 20, 21, 22, 23, 23, 24, 25, 26, 26, 27, 28, 29,
           30, 30, 31, *[32]*17)
BASE = dict(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
            intermediate_size=3072)
TINY = dict(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64)
LONGEST = max(LENGTHS)
BACKEND = 'inductor'                        # of torch.compile


def make_model(shape, dropout=.1, seed=0, device='cpu'):
    "A BERT with random weights, the same for the same seed and device"
    torch.manual_seed(seed)
    config = BertConfig(**shape, hidden_dropout_prob=dropout,
                        attention_probs_dropout_prob=dropout)
    with torch.device(device): model = BertModel(config, add_pooling_layer=False)
    return model.to(device).train()


def make_batches(count, batch, vocabulary, seed=0):
    "Random token ids with realistic lengths: `count` batches of `batch` lists"
    draw = np.random.default_rng(seed)
    lengths = draw.choice(LENGTHS, (count, batch))
    return [[draw.integers(1, vocabulary, n).tolist() for n in row] for row in lengths]


def work(model, sentences):
    "Floating-point operations of a step on both views: real tokens, forward and backward"
    c = model.config
    n = np.array([len(s) for s in sentences], dtype=float)
    linear = 4*c.hidden_size**2 + 2*c.hidden_size*c.intermediate_size
    forward = c.num_hidden_layers*(2*n.sum()*linear + 4*(n**2).sum()*c.hidden_size)
    return 6*forward + 6*len(n)**2*c.hidden_size            # two views, three passes; the cosines


def pack(sentences, step):
    """Both views of a batch without padding, `step` the multiple that tokens are filled up to.

    The filling is sentences of its own, so that attention writes every row. `row` says which
    sentence a token is of, with `2B` for the filling.
    """
    ids = [np.array(s) for s in sentences]*2
    lengths = np.array([len(x) for x in ids])
    fill = -int(lengths.sum()) % step
    ends = np.minimum(np.arange(1, -(-step//LONGEST) + 1)*LONGEST, fill)
    spare = np.diff(ends, prepend=0)
    place = [np.arange(n) for n in [*lengths, fill]]
    place[-1] %= LONGEST
    def whole(x): return torch.from_numpy(np.ascontiguousarray(x)).long()
    return {'ids': whole(np.concatenate([*ids, np.ones(fill, dtype=int)])),
            'places': whole(np.concatenate(place)),
            'row': whole(np.repeat(np.arange(len(ids) + 1), [*lengths, fill])),
            'ends': whole(np.cumsum([0, *lengths, *spare])).int(),
            'lengths': torch.from_numpy(lengths).float()}


def varlen_attention(query, key, value, ends, longest, dropout=0., scale=None,
                     efficient=False):
    """Attention inside each sentence, `(N, H, d)`; `ends` are cumulative lengths, int32.

    On a GPU this is the flash kernel, or for float32 and on demand the memory-efficient one,
    whose tiles are smaller than a flash tile of 128 keys.
    """
    if query.device.type == 'cpu':
        cuts = ends.diff().tolist()
        parts = zip(*(x.transpose(0, 1).split(cuts, 1) for x in (query, key, value)), strict=True)
        found = [F.scaled_dot_product_attention(*p, dropout_p=dropout, scale=scale)
                 for p in parts]
        return torch.cat(found, 1).transpose(0, 1)
    if efficient or query.dtype == torch.float32:
        found = torch.ops.aten._efficient_attention_forward(
            query[None], key[None], value[None], None, ends, ends, longest, longest, dropout, 0,
            True, scale=scale)
        return found[0][0]
    found = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, longest, longest, dropout, False, False, scale=scale)
    return found[0]


def unpadded_attention(module, query, key, value, attention_mask, scaling, dropout=0.,
                       ends=None, **others):
    "`varlen_attention` as transformers calls it: `(1, H, N, d)` in, `(1, N, H, d)` out"
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attention(query, key, value, ends, LONGEST, dropout, scaling)[None], None


AttentionInterface.register('sfr_varlen', unpadded_attention)


def packed_mean(x, packed):
    "Mean vector of each sentence, `(2B, D)` float32, from tokens `(N, D)`"
    lengths = packed['lengths']
    total = x.new_zeros(len(lengths) + 1, x.shape[1], dtype=torch.float32)
    total = total.index_add(0, packed['row'], x.float())
    return total[:-1]/lengths[:, None]


class Step:
    "A model, its optimiser, and one way to take a training step; `step(host) -> loss`"
    def __init__(self, model, precision='bf16', *, graph=False, fill=256, lr=3e-5):
        self.model, self.graph, self.fill = model, graph, fill
        self.device = next(model.parameters()).device
        self.half = precision == 'bf16'
        self.cuda = self.device.type == 'cuda'
        self.infonce = make_loss('infonce')
        self.encoder = SentenceEncoder(model, None, pooler='mean')
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.lr = torch.tensor(lr, device=self.device) if graph else lr
        self.optimizer = torch.optim.AdamW(self.parameters, self.lr, weight_decay=0.,
                                           fused=self.cuda or None, capturable=graph)
        self.graphs, self.pool = {}, None               # all graphs of a step share their memory
        self.last = torch.zeros((), device=self.device)

    def prepare(self, sentences):
        "What a data loader would hand over: tensors on the CPU, pinned for a GPU"
        return self.pinned(self.collate(sentences))

    def pinned(self, host):
        return {k: x.pin_memory() for k, x in host.items()} if self.cuda else host

    def collate(self, sentences):
        ids, mask = pad_ids(sentences, 0)
        return {'input_ids': ids, 'attention_mask': mask}

    def views(self, batch):
        "Both views of a batch, `(2B, D)`"
        raise NotImplementedError

    def loss(self, batch):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.infonce(*unit_rows(self.views(batch)).chunk(2))

    def backward(self, batch):
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def update(self):
        nn.utils.clip_grad_norm_(self.parameters, 1.)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def once(self, batch):
        loss = self.backward(batch)
        self.update()
        return loss

    def moved(self, host): return {k: x.to(self.device, non_blocking=True) for k, x in host.items()}

    def __call__(self, host):
        if not self.graph: return self.once(self.moved(host))
        key = tuple(tuple(x.shape) for x in host.values())
        if key not in self.graphs: self.graphs[key] = self.capture(self.moved(host))
        batch, graph = self.graphs[key]
        for k, x in host.items(): batch[k].copy_(x, non_blocking=True)
        graph.replay()
        return self.last.clone()

    def capture(self, batch):
        "A whole step as one CUDA graph, after three steps that warm up"
        beside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(now)
        with torch.cuda.stream(beside):
            for _ in range(3): self.once(batch)
        now.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool): self.last.copy_(self.once(batch))
        self.pool = graph.pool()
        return batch, graph


class Padded(Step):
    "The trainer's step of today, `TwoViews` under autocast"
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        two_views = import_trainer().TwoViews
        self.module = two_views(self.encoder, nn.Identity(), self.infonce).train()

    def loss(self, batch):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.module(**batch)['loss']


class Masked(Step):
    "Padded, with a mask that is not looked at"
    def hidden(self, ids, mask):
        n, T = ids.shape
        seen = mask.bool()[:, None, None, :].expand(n, 1, T, T)
        return self.model(input_ids=ids, attention_mask=seen).last_hidden_state

    def mean(self, ids, mask):
        ids, mask = ids.repeat(2, 1), mask.repeat(2, 1)
        x = self.hidden(ids, mask).float()
        return (x*mask[:, :, None]).sum(1)/mask.sum(1, keepdim=True)

    def views(self, batch): return self.mean(batch['input_ids'], batch['attention_mask'])


class MaskedWhole(Masked):
    "Padded to the longest length there is, so that there is one shape"
    def collate(self, sentences):
        host = super().collate(sentences)
        add = (0, LONGEST - host['input_ids'].shape[1])
        return {k: F.pad(x, add) for k, x in host.items()}


class Buckets(Masked):
    "Padded in two halves by length"
    def collate(self, sentences):
        order = np.argsort([len(s) for s in sentences], kind='stable')
        host, half = {}, len(order)//2
        for name, rows in (('short', order[:half]), ('long', order[half:])):
            ids, mask = pad_ids([sentences[i] for i in rows], 0)
            host |= {f'{name}_ids': ids, f'{name}_mask': mask}
        return host | {'back': torch.from_numpy(np.argsort(order))}

    def views(self, batch):
        parts = [self.mean(batch[f'{n}_ids'], batch[f'{n}_mask']).chunk(2)
                 for n in ('short', 'long')]
        return torch.cat([torch.cat(side)[batch['back']] for side in zip(*parts, strict=True)])


class Unpadded(Step):
    "Real tokens through transformers' own layers"
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.model.set_attn_implementation('sfr_varlen')

    def collate(self, sentences): return pack(sentences, self.fill)

    def views(self, batch):
        x = self.model(input_ids=batch['ids'][None], position_ids=batch['places'][None],
                       ends=batch['ends']).last_hidden_state
        return packed_mean(x[0], batch)


def add_and_norm(x, y, weight, bias, eps):
    "LayerNorm of a sum in float32, in the type of `x`"
    return F.layer_norm(x.float() + y.float(), weight.shape, weight, bias, eps).to(x.dtype)


def after_attention(a, x, out, into, back, norm1, norm2, dropout, eps):
    "A BERT layer behind its attention; each of the five is a weight and a bias"
    x = add_and_norm(x, F.dropout(F.linear(a, *out), dropout), *norm1, eps)
    y = F.linear(F.gelu(F.linear(x, *into)), *back)
    return add_and_norm(x, F.dropout(y, dropout), *norm2, eps)


class Lean(Step):
    """Real tokens through layers of our own: products in bfloat16, all weights cast at once.

    The float32 parameters stay the model's. LayerNorm and embeddings are read in float32.
    """
    def __init__(self, *args, compiled=False, efficient=False, **more):
        super().__init__(*args, **more)
        self.efficient = efficient
        self.copies, self.parts, self.slices, self.masters, self.layers = [], [], [], [], []
        for layer in self.model.encoder.layer:
            own, out = layer.attention.self, layer.attention.output
            products = ((own.query, own.key, own.value), (out.dense,),
                        (layer.intermediate.dense,), (layer.output.dense,))
            norms = [(m.weight, m.bias) for m in (out.LayerNorm, layer.output.LayerNorm)]
            self.layers.append(([self.copy_of(p) for p in products], norms))
        self.rest, self.compiled = after_attention, compiled
        if compiled: self.rest = torch.compile(after_attention, backend=BACKEND)

    def copy_of(self, modules):
        "Weight and bias of one product from those of several, in the type it is computed in"
        dtype = torch.bfloat16 if self.half else torch.float32
        pair = []
        for name in ('weight', 'bias'):
            masters = [getattr(m, name) for m in modules]
            whole = torch.cat([p.detach() for p in masters]).to(dtype).requires_grad_()
            self.copies.append(whole)
            self.parts.append(len(masters))
            self.slices += whole.detach().split([len(p) for p in masters])
            self.masters += masters
            pair.append(whole)
        return pair

    def collate(self, sentences): return pack(sentences, self.fill)

    def views(self, batch):
        c, e = self.model.config, self.model.embeddings
        p, p_attention = c.hidden_dropout_prob, c.attention_probs_dropout_prob
        x = F.embedding(batch['ids'], e.word_embeddings.weight, padding_idx=c.pad_token_id)
        x = x + F.embedding(batch['places'], e.position_embeddings.weight)
        x = x + e.token_type_embeddings.weight[0]
        x = F.layer_norm(x, (c.hidden_size,), e.LayerNorm.weight, e.LayerNorm.bias,
                         c.layer_norm_eps)
        x = F.dropout(x, p).to(self.copies[0].dtype)
        for (qkv, *products), norms in self.layers:
            shape = (len(x), 3, c.num_attention_heads, -1)
            q, k, v = F.linear(x, *qkv).view(shape).unbind(1)
            a = varlen_attention(q, k, v, batch['ends'], LONGEST, p_attention,
                                 efficient=self.efficient).reshape(x.shape)
            if self.compiled:                       # one compilation for any number of tokens
                for y in (a, x): torch._dynamo.maybe_mark_dynamic(y, 0)
            x = self.rest(a, x, *products, *norms, p, c.layer_norm_eps)
        return packed_mean(x, batch)

    def loss(self, batch): return self.infonce(*unit_rows(self.views(batch)).chunk(2))

    def backward(self, batch):
        with torch.no_grad(): torch._foreach_copy_(self.slices, self.masters)
        loss = super().backward(batch)
        cut = [g for c, n in zip(self.copies, self.parts, strict=True) for g in c.grad.chunk(n)]
        for m in self.masters: m.grad = torch.empty_like(m)
        torch._foreach_copy_([m.grad for m in self.masters], cut)
        for c in self.copies: c.grad = None
        return loss


class Theirs(Step):
    "sentence-transformers: its model and its MultipleNegativesRankingLoss on equal sentences"
    def __init__(self, model, *args, **more):
        super().__init__(model, *args, **more)
        from sentence_transformers.sentence_transformer.losses import (
            MultipleNegativesRankingLoss,
        )
        self.theirs = sentence_transformer(model).train()
        self.ranking = MultipleNegativesRankingLoss(self.theirs)
        self.parameters = [p for p in self.theirs.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, self.lr, weight_decay=0.,
                                           fused=self.cuda or None)

    def loss(self, batch):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return self.ranking([dict(batch), dict(batch)], None)


def sentence_transformer(model):
    "The same weights as a `SentenceTransformer` with mean pooling; the tokenizer is sfr-mini's"
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    tokenizer = SentenceEncoder.from_pretrained('sfr-mini').tokenizer
    with tempfile.TemporaryDirectory() as folder:
        copy.deepcopy(model).cpu().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        body = Transformer(str(Path(folder)), max_seq_length=LONGEST,
                           model_kwargs={'dtype': torch.float32, 'add_pooling_layer': False})
    device = str(next(model.parameters()).device)
    return SentenceTransformer(modules=[body, Pooling(model.config.hidden_size)], device=device)


BOTH = ('bf16', 'fp32')
FORMS = {                                   # name -> class, options, precisions, needs a GPU
    'padded': (Padded, {}, BOTH, False),
    'masked': (Masked, {}, BOTH, False),
    'buckets': (Buckets, {}, BOTH, False),
    'unpadded': (Unpadded, {}, BOTH, False),
    'lean': (Lean, {}, ('bf16',), False),
    'masked graph': (MaskedWhole, {'graph': True}, ('bf16',), True),
    'unpadded graph': (Unpadded, {'graph': True}, BOTH, True),
    'lean graph': (Lean, {'graph': True}, ('bf16',), True),
    'lean efficient graph': (Lean, {'efficient': True, 'graph': True}, ('bf16',), True),
    'lean compiled': (Lean, {'compiled': True}, ('bf16',), True),
    'lean compiled graph': (Lean, {'compiled': True, 'graph': True}, ('bf16',), True),
    'lean efficient compiled graph': (
        Lean, {'efficient': True, 'compiled': True, 'graph': True}, ('bf16',), True),
}
