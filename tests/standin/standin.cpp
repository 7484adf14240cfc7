// An accelerator in the processor's own memory: tensors of a device of their own, whose operations run on the CPU.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/unfold_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <cstdlib>

using at::Tensor;
static const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = nullptr;
    if (n) TORCH_CHECK(posix_memalign(&p, 64, n) == 0);
    return {p, p, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t n) const override { std::memcpy(to, from, n); }
};
static Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device d) const noexcept { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept { return s; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Random final : c10::GeneratorImpl {
  at::Generator cpu;
  explicit Random(at::Generator g)
      : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), cpu(std::move(g)) {}
  void set_current_seed(uint64_t s) override { cpu.set_current_seed(s); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& s) override { cpu.unsafeGetGeneratorImpl()->set_state(s); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  c10::GeneratorImpl* clone_impl() const override { return new Random(cpu.clone()); }
};
static at::Generator made() { return at::make_generator<Random>(at::detail::createCPUGenerator()); }
static at::Generator& standard() { static at::Generator g = made(); return g; }
static at::Generator inner(const std::optional<at::Generator>& g) {
  const at::Generator& chosen = g.has_value() && g->defined() ? *g : standard();
  TORCH_CHECK(chosen.device() == kDevice, "Expected a 'standin' device type for generator but found '", chosen.device().type(), "'");
  return static_cast<Random*>(chosen.unsafeGetGeneratorImpl())->cpu;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return standard(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return made(); }
  void resizePrivateUse1Bytes(const c10::Storage& s, size_t n) const override {
    auto fresh = memory.allocate(n);
    std::memcpy(fresh.get(), s.data(), std::min(n, s.nbytes()));
    s.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    s.unsafeGetStorageImpl()->set_nbytes(n);
  }
};
static Hooks hooks;

// The same memory seen as a CPU tensor.
static Tensor cpu(const Tensor& t) {
  if (t.is_cpu()) return t;
  auto s = c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(),
      c10::DataPtr(t.storage().mutable_data(), c10::kCPU), nullptr, false);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(s), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.is_conj()) out._set_conj(true);
  return out;
}

static Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}
static Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}
static Tensor copy_from(const Tensor& self, const Tensor& dst, bool) { cpu(dst).copy_(cpu(self)); return dst; }
static Tensor copy_from_and_resize(const Tensor& self, const Tensor& dst) {
  if (dst.sizes() != self.sizes()) dst.resize_(self.sizes());
  cpu(dst).copy_(cpu(self));
  return dst;
}
static at::Scalar item(const Tensor& t) { return cpu(t).item(); }
static bool equal(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.device() == b.device(), "equal: tensors on ", a.device(), " and ", b.device());
  return cpu(a).equal(cpu(b));
}
static Tensor& set_storage(Tensor& self, at::Storage src, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(self, src, offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
static const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  int64_t n = c10::multiply_integers(sizes);
  size_t bytes = (n + self.storage_offset()) * self.element_size();
  if (bytes > self.storage().nbytes()) hooks.resizePrivateUse1Bytes(self.storage(), bytes);
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return self;
}
static Tensor view(const Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }
static Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt);
}
static Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

using G = std::optional<at::Generator>;
static Tensor& normal_(Tensor& t, double m, double s, G g) { cpu(t).normal_(m, s, inner(g)); return t; }
static Tensor& uniform_(Tensor& t, double a, double b, G g) { cpu(t).uniform_(a, b, inner(g)); return t; }
static Tensor& random_(Tensor& t, G g) { cpu(t).random_(inner(g)); return t; }
static Tensor& random_to(Tensor& t, int64_t n, G g) { cpu(t).random_(n, inner(g)); return t; }
static Tensor& random_from(Tensor& t, int64_t a, std::optional<int64_t> b, G g) { cpu(t).random_(a, b, inner(g)); return t; }
static Tensor& bernoulli_float(Tensor& t, double p, G g) { cpu(t).bernoulli_(p, inner(g)); return t; }
static Tensor& bernoulli_tensor(Tensor& t, const Tensor& p, G g) { cpu(t).bernoulli_(cpu(p), inner(g)); return t; }
static Tensor& bernoulli_out(const Tensor& p, G g, Tensor& out) { auto c = cpu(out); at::bernoulli_out(c, cpu(p), inner(g)); return out; }
static Tensor& exponential_(Tensor& t, double l, G g) { cpu(t).exponential_(l, inner(g)); return t; }
static Tensor& randperm(c10::SymInt n, G g, Tensor& out) {
  auto drawn = at::randperm(n.expect_int(), inner(g), at::TensorOptions().dtype(out.scalar_type()));
  out.resize_({n.expect_int()});
  cpu(out).copy_(drawn);
  return out;
}
static Tensor multinomial(const Tensor& p, c10::SymInt n, bool again, G g) {
  return at::multinomial(cpu(p), n.expect_int(), again, inner(g)).to(kDevice);
}
static std::tuple<Tensor, Tensor> dropout(const Tensor& x, double p, std::optional<bool> train) {
  auto mask = at::empty_like(x, x.options().dtype(at::kBool));
  if (train.has_value() && !*train) return {x.clone(), mask.fill_(true)};
  mask.bernoulli_(1 - p);
  return {x.mul(mask).mul(p == 1 ? 0.0 : 1 / (1 - p)), mask};
}

static Tensor there(const Tensor& t) { return t.defined() ? t.to(kDevice) : t; }
static Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef more, c10::SymInt groups) {
  std::optional<Tensor> bias = b.has_value() && b->defined() ? std::optional<Tensor>(cpu(*b)) : std::nullopt;
  return there(at::convolution_symint(cpu(x), cpu(w), bias, stride, padding, dilation, transposed, more, groups));
}
static std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& g, const Tensor& x, const Tensor& w, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef more, c10::SymInt groups, std::array<bool, 3> mask) {
  auto [a, b, c] = at::convolution_backward_symint(cpu(g), cpu(x), cpu(w), c10::SymIntArrayRef{w.sym_size(transposed ? 1 : 0) * (transposed ? groups : c10::SymInt(1))}, stride, padding, dilation, transposed, more, groups, mask);
  return {there(a), there(b), there(c)};
}
static std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& x, const Tensor& h, const Tensor& cx, const std::optional<Tensor>& bx, const std::optional<Tensor>& bh) {
  Tensor sum = x.add(h);
  for (const auto& b : {bx, bh}) if (b.has_value() && b->defined()) sum = sum.add(*b);
  auto gates = sum.chunk(4, 1);
  Tensor i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(), o = gates[3].sigmoid();
  Tensor cy = f.mul(cx).add(i.mul(g));
  return {o.mul(cy.tanh()), cy, at::cat({i, f, g, o}, 1)};
}
static std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const std::optional<Tensor>& gh, const std::optional<Tensor>& gc, const Tensor& cx, const Tensor& cy, const Tensor& workspace, bool has_bias) {
  auto gates = workspace.chunk(4, 1);
  const Tensor &i = gates[0], &f = gates[1], &g = gates[2], &o = gates[3];
  Tensor dh = gh.has_value() && gh->defined() ? *gh : at::zeros_like(cx), t = cy.tanh();
  Tensor dc = dh.mul(o).mul(t.mul(t).neg().add(1));
  if (gc.has_value() && gc->defined()) dc = dc.add(*gc);
  auto slope = [](const Tensor& s) { return s.mul(s.neg().add(1)); };
  Tensor all = at::cat({dc.mul(g).mul(slope(i)), dc.mul(cx).mul(slope(f)), dc.mul(i).mul(g.mul(g).neg().add(1)), dh.mul(t).mul(slope(o))}, 1);
  return {all, dc.mul(f), has_bias ? all.sum(0) : Tensor()};
}

// As on an accelerator: of the processor's tensors only single numbers and indices mix with those here.
static void check_device(const c10::OperatorHandle& op, const c10::IValue& argument) {
  if (argument.isTensor()) {
    const auto& t = argument.toTensor();
    TORCH_CHECK(!t.defined() || !t.is_cpu() || t.dim() == 0, op.schema().name(), " on ", kDevice, " was given a tensor on cpu");
  } else if (argument.isTensorList()) {
    for (const Tensor& t : argument.toTensorVector()) check_device(op, t);
  }
}
static void to_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) check_device(op, argument);
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&to_cpu>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("equal", &equal);
  m.impl("set_.source_Storage", [](Tensor& self, at::Storage src) -> Tensor& {
    int64_t n = static_cast<int64_t>(src.nbytes() / self.element_size());
    return at::native::set_storage_cpu_(self, src, 0, {n}, {}); });
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", [](Tensor& self, const Tensor& other) -> Tensor& {
    return at::native::set_storage_cpu_(self, other.storage(), other.storage_offset(), other.sizes(), other.strides()); });
  m.impl("resize_", &resize);
  m.impl("view", &view);
  m.impl("as_strided", &as_strided);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", [](const Tensor& t, int64_t d, int64_t n, int64_t s) { return at::native::unfold(t, d, n, s); });
  m.impl("normal_", &normal_);
  m.impl("uniform_", &uniform_);
  m.impl("random_", &random_);
  m.impl("random_.to", &random_to);
  m.impl("random_.from", &random_from);
  m.impl("bernoulli_.float", &bernoulli_float);
  m.impl("bernoulli_.Tensor", &bernoulli_tensor);
  m.impl("bernoulli.out", &bernoulli_out);
  m.impl("exponential_", &exponential_);
  m.impl("randperm.generator_out", &randperm);
  m.impl("multinomial", &multinomial);
  m.impl("native_dropout", &dropout);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
}

TORCH_LIBRARY(standin, m) {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("seed(int seed) -> ()", [](int64_t seed) { standard().set_current_seed(seed); });
  m.def("state() -> Tensor", [] { return standard().get_state(); });
  m.def("set_state(Tensor state) -> ()", [](const Tensor& state) { standard().set_state(state); });
}
