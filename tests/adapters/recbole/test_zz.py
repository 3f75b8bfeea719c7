import pytest, torch, time, traceback, random, numpy as np
from recplug.adapters.recbole import trim
from recplug.adapters.recbole.hosts import HOSTS
NODROP = dict(hidden_dropout_prob=0.0, attn_dropout_prob=0.0, dropout_prob=0.0, dropout_probs=[0.0,0.0], sess_dropout=0.0, item_dropout=0.0)
def seed():
    torch.manual_seed(0); random.seed(0); np.random.seed(0)
def run(m, b, t):
    seed(); m.train(); m.zero_grad()
    l = m.calculate_loss(b)
    l = sum(l) if isinstance(l, tuple) else l
    l.backward()
    g = {k: (p.grad.clone() if p.grad is not None else torch.zeros(1)) for k,p in m.named_parameters()}
    m.eval()
    with torch.no_grad(): s = m.full_sort_predict(t)
    return l.detach(), g, s
def test_all(build, batch_of, difference, monkeypatch, capsys):
    plan = trim.plan
    monkeypatch.setattr(trim, "plan", lambda counts: plan(counts, 0))
    for name in HOSTS:
        if HOSTS[name].status == "refused": continue
        for loss in (HOSTS[name].losses or (None,)):
            try:
                kw = dict(NODROP); 
                if loss: kw["loss_type"]=loss
                c,m,tr,va,te = build(name, [], **kw)
                a = run(m, batch_of(tr), batch_of(te))
                # dot
                try:
                    m.eval(); b=batch_of(te)
                    got={}
                    orig=type(m).__mro__[2].forward
                    def spy(self,*x,**k):
                        o=orig(self,*x,**k); got['o']=o; return o
                    type(m).__mro__[2].forward=spy
                    with torch.no_grad():
                        s=m.full_sort_predict(b).reshape(60,-1)
                        d = difference(got['o'] @ m.recplug.item_table.weight[:s.shape[1]].T, s)
                except Exception as e: d=repr(e)[:60]
                finally: type(m).__mro__[2].forward=orig
                m.recplug_trim = True
                res=[]
                try:
                    z = run(m, batch_of(tr), batch_of(te))
                    res=[difference(a[0],z[0]), max((difference(a[1][k],z[1][k]),k) for k in a[1]), difference(a[2],z[2])]
                except Exception as e: res=repr(e)[:150]
                with capsys.disabled(): print(name, loss, "| trim", HOSTS[name].trim, res, "| dot", HOSTS[name].dot, d)
            except Exception as e:
                with capsys.disabled(): print("FAIL", name, loss); traceback.print_exc(limit=-3)
